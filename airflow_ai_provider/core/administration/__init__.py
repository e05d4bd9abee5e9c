"""What people and maintenance tasks do to an installation: each change is in the audit trail."""
