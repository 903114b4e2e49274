"""The format of the files in which a service records sampled texts and feedback."""

FILE_PATTERN = "records-*.jsonl"
PREDICTION_KIND, FEEDBACK_KIND = "prediction", "feedback"  # values of `kind` in each line
