"""What is learned: the Task type, the tasks, and what a model is on disk."""
