"""What tests share: stock data sets made offline, random models, plain oracles."""
