package main

import (
	"runtime"
	"runtime/debug"

	"unum"
)

type versionInfo struct {
	Unum     string `json:"unum"`
	Revision string `json:"revision"`
	Go       string `json:"go"`
}

// versions says what this binary was built from.
func versions() versionInfo {
	v := versionInfo{Unum: unum.Version, Revision: "no revision", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	dirty := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			v.Revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+"
		}
	}
	v.Revision += dirty
	return v
}
