"""What runs on Lightbox' hosts: training, the prediction API and the pages."""
