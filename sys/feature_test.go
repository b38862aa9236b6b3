package sys

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"unum"
)

// A skip is itself checked: a kernel that should have the feature must.
func TestFeatures(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	major, minor := KernelVersion()
	for _, f := range []struct {
		name         string
		major, minor int
		probe        func() error
	}{
		{"clone3 set_tid", 5, 5, FeatureCloneSetTid},
		{"pidfd_getfd", 5, 6, FeaturePidfdGetfd},
		{"namespaces", 3, 8, FeatureNamespaces},
		{"time namespaces", 5, 6, FeatureTimeNamespace},
		{"seccomp notify", 5, 19, FeatureSeccompNotify},
		{"process_vm", 3, 2, FeatureProcessVM},
		{"memfd", 3, 17, FeatureMemfdExec},
		{"tty", 2, 7, FeatureTTY},
		{"ptrace", 3, 8, FeaturePtrace},
		{"suspended filters", 4, 3, FeatureSuspendSeccomp},
		{"fuse", 5, 2, FeatureFUSE},
		{"fuse expire-only", 6, 2, FeatureFUSEExpireOnly},
		{"fuse passthrough", 6, 9, FeatureFUSEPassthrough},
		{"fuse resend", 6, 9, FeatureFUSEResend},
		{"pagemap_scan", 6, 7, FeaturePagemapScan},
		{"pidfs", 6, 14, FeaturePidfs},
		{"timer ids", 6, 15, FeatureTimerIDs},
		{"tcx", 6, 6, FeatureTCX},
	} {
		t.Run(f.name, func(t *testing.T) {
			should := major > f.major || major == f.major && minor >= f.minor
			switch err := f.probe(); {
			case err == nil && !should:
				t.Errorf("Linux %d.%d is not said to have it", major, minor)
			case err == nil:
			case should && errors.Is(err, unix.EPERM), should && errors.Is(err, unix.EBUSY):
				t.Skip(err) // this process may not use it
			case should:
				t.Errorf("Linux %d.%d should have it: %v", major, minor, err)
			case !errors.Is(err, unum.ErrNoFeature):
				t.Errorf("not an ErrNoFeature: %v", err)
			}
		})
	}
}
