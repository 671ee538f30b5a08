"""What the suite needs of the machine: files, locks, processes, cores, memory, provenance."""
