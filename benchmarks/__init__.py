"""What is run: data, models, training, experiments, records, tables and plots."""
