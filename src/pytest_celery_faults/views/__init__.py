"""What a test asserts on. Each view reads the recorder; none of them writes to it."""
