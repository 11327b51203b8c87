-- Fixed-width text: customer in the master, customer in the sample, day, number of CDs, dollars; no header line.
WITH lines AS (
    SELECT string_split_regex(trim(line), '\s+') AS part
    FROM read_csv('{root}/CDNOW_sample.txt', header = false, delim = '\t', quote = '', columns = {'line': 'VARCHAR'})
)
SELECT
    part[2]::INTEGER AS customer_id,
    strptime(part[3], '%Y%m%d')::DATE AS event_time,
    'purchase' AS event_type,
    round(sum(part[5]::DOUBLE), 2) AS amount,
    sum(part[4]::DOUBLE) AS num_cds
FROM lines
GROUP BY ALL
