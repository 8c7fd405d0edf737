"""What several tests share: real servers to start, statistics, and fakes as classes."""
