"""The commands, one file each: `add_options(parser)` declares the options, `command(options)` runs."""
