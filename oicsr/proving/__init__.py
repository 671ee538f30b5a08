"""The proof that couplings are right: channels of zeros are removed from copies, and what fails is mended or left."""
