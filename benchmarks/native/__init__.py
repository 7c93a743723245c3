"""`make bench-native`: compare the native driver with the Python driver."""
