"""What tests share that is no fixture, by role."""
