"""What the stages hand each other: plain frozen data, and the store that keeps it."""
