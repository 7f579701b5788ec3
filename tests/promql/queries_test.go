// Package promql lets Prometheus' own engine answer the queries of alerts, autoscalers and dashboards.
package promql

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/prometheus/promql/promqltest"
)

// TestScripts runs every script in the folder that SCRIPTS names: series, queries and what they must answer, in the
// language of Prometheus' own tests.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(os.Getenv("SCRIPTS"), "*.test"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in SCRIPTS=%q: %v", os.Getenv("SCRIPTS"), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			promqltest.RunTest(t, string(script), promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery))
		})
	}
}
