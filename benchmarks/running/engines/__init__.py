"""Where runs are done: in this process, in several, or on a Ray cluster; `contract` says what an engine is."""
