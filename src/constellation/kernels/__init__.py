"""The few operations that training time goes into, each beside a plain twin that the tests compare it with."""
