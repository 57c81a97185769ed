"""Private names of libraries, a module a library: what each is for, and what breaks without it."""
