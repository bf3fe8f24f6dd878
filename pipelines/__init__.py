"""What is done: plain functions and values, from raw rows to a served champion. No Prefect here."""
