"""Optimisers through surgery: what they keep of a network's parameters goes on with the smaller network."""
