"""The annotation desk: a page of the service where people label what the loop wants labelled."""
