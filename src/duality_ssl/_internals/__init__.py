"""Private names of libraries, a module per library: what each is for, what breaks without it."""
