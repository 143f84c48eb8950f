"""What several test modules share: pictures, sets, models, runs, and how to break them."""
