"""The files in which a service keeps sampled texts and feedback: their names and kinds of lines, for writer and reader."""

PATTERN = "records-*.jsonl"
PREDICTION, FEEDBACK = "prediction", "feedback"  # values of `kind` in each line
