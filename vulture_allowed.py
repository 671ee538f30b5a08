"""Names that nothing calls by name, and why they stay (read by vulture alone)."""

# called by PyTorch
setup_context
_check_input_dim
_.num_features
_.normalized_shape
_.num_parameters
_.in1_features
_.in2_features
_.hidden_size
_.num_embeddings
_.embedding_dim
_.__class__
_.extra_repr

# fields that are written to files, or read through asdict
train_top1
val_loss

# facts of a method that contract tests read
reach
potential
signed

# a signal handler's second argument
frame

# doors for tests: one run without a sweep, one record without a file
run_cell
tune
read_records
parse_record

# a public name that users pass on
PAPER_CAP

# launched by its name, as a Triton kernel
square_sums

# the table that `describe` gives, for notebooks
_.to_frame

# a type variable, named in annotations that are strings
AnyRule

# fields of a record's schema, which pydantic reads
macs_with_norm_pool
concentration
cumulative
val_top1_before
val_top1_after
record_sha256
history_sha256
channels_sha256
