"""Names that nothing calls by name, and why they stay (read by vulture alone)."""

# called by PyTorch
setup_context
_.num_features
_.normalized_shape
_.num_parameters
_.__class__

# fields that are written to files, or read through asdict
train_top1
val_loss

# facts of a method that contract tests read
reach
potential
signed

# arguments that make a cache notice a changed file
modified

# of the comparison: nothing calls these any more, remove with the next change of the tables
_.restricted
to_latex

# a signal handler's second argument
frame

# doors for tests: one run without a sweep, one record without a file, a recorder without a GPU
run_cell
tune
read_records
parse_record
Repeater
_.replayed

# PAPER_CAP is a public name that users pass on; named_layers is called by nothing yet: join or delete
PAPER_CAP
named_layers

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

# escapes of formats, for tables
for_latex
for_csv
