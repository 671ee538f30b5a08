"""From a network to its couplings: the graph is followed, attention is settled, and what was found is proved."""
