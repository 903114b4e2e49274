"""Names and kinds of lines of the files in which a service keeps sampled texts and feedback."""

PATTERN = "records-*.jsonl"
PREDICTION, FEEDBACK = "prediction", "feedback"  # values of `kind` in each line
