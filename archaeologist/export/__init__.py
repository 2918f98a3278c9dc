"""A campaign in the forms that other tools read: Parquet and CSV, TensorBoard's event files, an offline W&B run."""
