"""memfit beside what people use today."""
