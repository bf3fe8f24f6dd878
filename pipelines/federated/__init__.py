"""Federated training: jobs and answers, sites, cohorts, strategies, engines and the one round loop."""
