-- The same purchases as cdnow_sample.sql, from a Parquet file.
SELECT
    sample_id::INTEGER AS customer_id,
    "date"::DATE AS event_time,
    'purchase' AS event_type,
    round(sum(dollar_value), 2) AS amount,
    sum(number_of_cds)::DOUBLE AS num_cds
FROM '{root}/cdnow_sample.parquet'
GROUP BY ALL
