"""Tables and contact sheets of finished evaluations."""
