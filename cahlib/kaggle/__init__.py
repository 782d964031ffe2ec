"""An unattended run on Kaggle's GPU, driven by `kaggle.sh`; the servers belong to this machine."""
