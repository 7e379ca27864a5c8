"""The documented CNN as a user of the search engine: model, training, scores, searches, verdicts."""
