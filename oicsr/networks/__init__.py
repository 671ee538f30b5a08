"""What holds for any network: its inputs and outputs, copies of it, and running it without leaving a trace."""
