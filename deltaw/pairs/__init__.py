"""Names of both sides become pairs to measure, and a reason for every tensor that is not measured."""
