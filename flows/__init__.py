"""When things run: Prefect flows that chain the steps of `pipelines`, and the `fedloop` command."""
