"""One operation: what is checked, how it is submitted, what the caller gets, how it is differentiated."""
