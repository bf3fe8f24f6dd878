"""What is watched: the traffic log, drift, alarms and the dashboard."""
