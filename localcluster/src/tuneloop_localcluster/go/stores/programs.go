//go:build programs

// Package programs names the programs of other projects that this module builds as they are, so that
// `go mod tidy` keeps what they need. The build tag keeps it from ever being compiled.
package programs

import (
	_ "github.com/versity/versitygw/cmd/versitygw"
)
