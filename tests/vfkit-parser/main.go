// Reads command lines of vfkit's with vfkit's own parser: a JSON array of arguments a line on standard input, the
// machine that vfkit would make of it a line on standard output. Built inside vfkit's sources by scripts/check-vfkit.sh.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/crc-org/vfkit/pkg/cmdline"
	"github.com/crc-org/vfkit/pkg/config"
	"github.com/spf13/cobra"
)

// As vfkit's own main does, without what we never ask for.
func parse(arguments []string) (*config.VirtualMachine, *cmdline.Options, error) {
	options := &cmdline.Options{}
	command := &cobra.Command{Use: "vfkit", SilenceErrors: true, SilenceUsage: true, RunE: func(_ *cobra.Command, rest []string) error {
		if len(rest) != 0 {
			return fmt.Errorf("not an option: %q", rest)
		}
		return nil
	}}
	cmdline.AddFlags(command, options)
	command.SetArgs(arguments)
	if err := command.Execute(); err != nil {
		return nil, nil, err
	}
	bootloader, err := config.BootloaderFromCmdLine(options.Bootloader.GetSlice())
	if err != nil {
		return nil, nil, err
	}
	machine := config.NewVirtualMachine(options.Vcpus, uint64(options.MemoryMiB), bootloader)
	return machine, options, machine.AddDevicesFromCmdLine(options.Devices)
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var arguments []string
		if err := json.Unmarshal(line, &arguments); err != nil {
			panic(err)
		}
		answer := map[string]any{}
		if machine, options, err := parse(arguments); err != nil {
			answer["error"] = err.Error()
		} else {
			answer["machine"], answer["restful"] = machine, options.RestfulURI
		}
		if err := answers.Encode(answer); err != nil {
			panic(err)
		}
	}
}
