"Intracranial haemorrhage detection on head CT, from DICOM to probabilities. Research software, not a medical device."
__version__ = "0.1.0"
