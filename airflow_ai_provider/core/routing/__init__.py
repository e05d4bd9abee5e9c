"""From a row to its tier, and from the tier to deployments."""
