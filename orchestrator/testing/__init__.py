"""What tests need: fake clock, memory fakes, conformance suites."""
