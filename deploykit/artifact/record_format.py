"""The format of the files in which a service records sampled texts and feedback."""

PATTERN = "records-*.jsonl"
PREDICTION, FEEDBACK = "prediction", "feedback"  # values of `kind` in each line
