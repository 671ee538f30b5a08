"""What records say: comparisons, statistics, claims and verdicts. No drawing, no training."""
