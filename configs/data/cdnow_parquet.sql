-- The same purchases as cdnow.sql, from a Parquet file.
SELECT
    customer_id,
    "date"::DATE AS event_time,
    'purchase' AS event_type,
    round(sum(dollar_value), 2) AS amount,
    sum(number_of_cds)::DOUBLE AS num_cds
FROM '{root}/cdnow_master.parquet'
GROUP BY ALL
