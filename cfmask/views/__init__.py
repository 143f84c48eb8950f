"""Views: further versions of each image, and what models say to them; one file each."""
