-- Fixed-width text: customer, day, number of CDs, dollars; a header line. Purchases of one customer and day are one.
WITH lines AS (
    SELECT string_split_regex(trim(line), '\s+') AS part
    FROM read_csv('{root}/CDNOW_master.txt', header = false, skip = 1, delim = '\t', quote = '', columns = {'line': 'VARCHAR'})
)
SELECT
    part[1]::INTEGER AS customer_id,
    strptime(part[2], '%Y%m%d')::DATE AS event_time,
    'purchase' AS event_type,
    round(sum(part[4]::DOUBLE), 2) AS amount,
    sum(part[3]::DOUBLE) AS num_cds
FROM lines
GROUP BY ALL
