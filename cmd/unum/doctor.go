package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"unum/doctor"
	"unum/world"
)

type doctorRow struct {
	Name    string `json:"feature"`
	Status  string `json:"status"` // ok, missing, unknown, failed
	Since   string `json:"since,omitempty"`
	Needed  bool   `json:"needed"`
	For     string `json:"for"`
	Without string `json:"without"`
	Error   string `json:"error,omitempty"`
}

func doctorCommand() *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine can be a node, and what a newer kernel would add",
		Long: `Check this machine, by trying each feature. The exit code is 1 if it lacks what a
node needs. Run it as root: others may not look at everything.`,
		Example: `  sudo unum doctor
  sudo unum doctor --json | jq '.[] | select(.status != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if node, in := world.Inside(); in {
				return fmt.Errorf("doctor: this is inside the world of node %s, from where a machine cannot be seen; type it outside", node)
			}
			var all []doctorRow
			var rows [][]string
			lacking := 0
			for _, r := range doctor.Examine(doctor.Table()) {
				row := doctorRow{Name: r.Check.Name, Status: r.Status(), Since: r.Check.Since,
					Needed: r.Check.Needed, For: r.Check.For, Without: r.Check.Without}
				need, say := "", row.For
				if row.Needed {
					need = "needed"
				}
				if r.Err != nil {
					row.Error = clean(r.Err.Error())
					say = "without: " + row.Without + " (" + row.Error + ")"
					if row.Needed {
						lacking++
					}
				}
				all = append(all, row)
				rows = append(rows, []string{row.Name, row.Status, row.Since, need, say})
			}
			if err := table(cmd, all, "FEATURE STATUS SINCE NEEDED NOTE", rows); err != nil {
				return err
			}
			if lacking > 0 {
				return &codeError{1, errors.New(fmt.Sprint("this machine cannot be a node yet: ", lacking, " needed features are not there"))}
			}
			return nil
		},
	})
}
