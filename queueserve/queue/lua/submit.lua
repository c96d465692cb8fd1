-- qs_submit: put a job into the queue, and dispatch. Idempotent by job id; on a job that exists it attaches
-- the caller as its reader and tells how the job stands.
--   KEYS root
--   ARGV id, api, api_timeout_us, api_is_new (0|1), body, digest, class, tenant, weight, cost,
--        wait_us, total_us, grace_us, max_attempts, max_queue, max_tenant_queue, resume ('' or JSON), known (0|1),
--        light (0|1), reader
--   `known`: the job was acknowledged before, so no bound may refuse it
--   `reader`: one of the API server's; a later one takes the job over, and `cancel` names it
--   `light`: it takes milliseconds and no step of the engine, so it needs no slot
--   returns { verdict, state, epoch, worker, position, result }
--     verdict: new | exists | full | conflict | gone (the API server has expired)

local function standing(root, id, verdict)
  local fields = redis.call('HMGET', key(root, 'job', id), 'state', 'epoch', 'worker', 'result')
  local rank = fields[1] == 'queued' and redis.call('ZRANK', key(root, 'queue'), id)
  return { verdict, fields[1] or '', tonumber(fields[2] or 0), fields[3] or '',
    rank and rank + 1 or 0, fields[4] or '' }
end

local function retry_after(root, depth)
  local fields = redis.call('HMGET', key(root, 'state'), 'rate')
  local rate = number(fields[1], 0)
  return string.format('%.3f', math.max(1, math.min(120, rate > 0 and depth / rate or 10)))
end

local function register_api(root, api, time, timeout, is_new)
  local expiry = redis.call('ZSCORE', key(root, 'apis'), api)
  if expiry and tonumber(expiry) > time then
    return true
  end
  if is_new then
    redis.call('ZADD', key(root, 'apis'), time + timeout, api)
  end
  return is_new
end

local function note_reader(root, api, id)
  local open = key(root, 'by_api', api)
  if type(redis.pcall('SADD', open, id)) ~= 'number' then -- not ours, in the place of ours
    redis.call('DEL', open)
    redis.call('SADD', open, id)
  end
  redis.call('PEXPIRE', open, DAY_MS)
end

local function attach(root, id, api, reader, digest, time)
  local job = key(root, 'job', id)
  local fields = redis.call('HMGET', job, 'digest', 'api', 'state', 'cancel')
  if fields[1] and fields[1] ~= digest then
    return standing(root, id, 'conflict')
  end
  if fields[4] and not FINAL[fields[3]] then -- its worker was asked to stop: nothing more will come of this run
    local found = standing(root, id, 'exists')
    found[2], found[6] = fields[4], result_of_stopped(fields[4])
    return found
  end
  if fields[2] and not FINAL[fields[3]] then
    redis.pcall('SREM', key(root, 'by_api', fields[2]), id)
    note_reader(root, api, id)
    redis.call('HSET', job, 'api', api, 'reader', reader)
    if redis.call('HDEL', job, 'detached') == 1 then
      redis.call('ZADD', key(root, 'due'), time, id) -- the reaper works out anew when it is due
    end
  end
  return standing(root, id, 'exists')
end

local function full(root, tenant, max_queue, max_tenant)
  local depth = redis.call('ZCARD', key(root, 'queue'))
  if depth == 0 and redis.call('ZCARD', key(root, 'free')) > 0 then
    return nil -- it will not wait
  end
  local mine = number(redis.call('HGET', key(root, 'waiting'), tenant), 0)
  if depth >= max_queue or mine >= max_tenant then
    return { 'full', '', 0, '', depth, retry_after(root, depth) }
  end
end

-- A job as `submit` is told of it; `fields` is what its hash has whatever becomes of it.
local function new_job(args, time)
  local wait, total = tonumber(args[11]), tonumber(args[12])
  local job = { epoch = 0, attempts = 0, api = args[2], tenant = args[8], class = tonumber(args[7]),
    weight = args[9], cost = args[10], body = args[5],
    queue_by = time + wait, end_by = time + total, keep_ms = math.ceil(total / 1000) + 5 * RESULT_MS }
  job.fields = { 'api', job.api, 'tenant', job.tenant, 'class', job.class, 'weight', job.weight, 'cost', job.cost,
    'submitted', time, 'queue_by', job.queue_by, 'end_by', job.end_by, 'grace_us', args[13],
    'orphan_us', args[3], 'max_attempts', args[14], 'digest', args[6], 'body', job.body,
    'light', args[19] or '', 'reader', args[20] or '' }
  if args[17] ~= '' then
    job.resume = args[17]
    table.insert(job.fields, 'resume')
    table.insert(job.fields, job.resume)
  end
  return job
end

local function nothing_ahead(root)
  return redis.call('EXISTS', key(root, 'queue'), key(root, 'alone'), key(root, 'reserved')) == 0
end

-- Nothing waits and a slot is free, so nobody owes anybody anything (see `forget`), and the job's tag is the
-- virtual time.
local function start_at_once(root, id, job, seat, time)
  local epoch, tag = assign(root, id, job, job.class, nil, seat, time, job.fields, job.keep_ms)
  note_reader(root, job.api, id)
  if seat.running >= seat.slots and redis.call('ZCARD', key(root, 'free')) == 0 then -- others will wait
    fair_charge(root, job.class, job.tenant, tag, job.cost, job.weight)
  end
  return { 'new', 'running', epoch, seat.worker, 0, '' }
end

local function wait_in_queue(root, id, job, time)
  local rank = fair_rank(root, job.class, job.tenant, job.cost, job.weight)
  local hash = key(root, 'job', id)
  redis.call('HSET', hash, 'state', 'queued', 'epoch', job.epoch, 'worker', '', 'attempts', job.attempts,
    'rank', rank, unpack(job.fields))
  redis.call('PEXPIRE', hash, job.keep_ms)
  note_reader(root, job.api, id)
  enqueue(root, id, job.tenant, rank)
  look_at(root, id, job.queue_by, job.end_by)
  fair_prune(root)
  local ahead = redis.call('ZRANK', key(root, 'queue'), id)
  if ahead > 0 then -- for the head, nothing has changed
    return { 'new', 'queued', 0, '', ahead + 1, '' }
  end
  dispatch(root, time)
  return standing(root, id, 'new')
end

local function submit(keys, args)
  local root, time = keys[1], now()
  local id, api = args[1], args[2]
  if not register_api(root, api, time, tonumber(args[3]), args[4] == '1') then
    return { 'gone', '', 0, '', 0, '' }
  end
  if redis.call('EXISTS', key(root, 'job', id)) == 1 then
    return attach(root, id, api, args[20] or '', args[6], time)
  end
  local job = new_job(args, time)
  local seat = nothing_ahead(root) and lowest_load(root, time)
  if seat then
    return start_at_once(root, id, job, seat, time)
  end
  local refusal = args[18] ~= '1' and full(root, job.tenant, tonumber(args[15]), tonumber(args[16]))
  return refusal or wait_in_queue(root, id, job, time)
end

-- qs_resume: the reader of an orphaned job says from where it goes on; compare-and-set on the epoch.
--   KEYS root    ARGV id, epoch, api, resume (JSON), wait_us
--   returns the verdict: resumed | stale
local function resume(keys, args)
  local root, id, time = keys[1], args[1], now()
  local job = key(root, 'job', id)
  local fields = redis.call('HMGET', job, 'state', 'epoch', 'api', 'rank', 'tenant', 'end_by', 'resumed',
    'detached', 'attempts', 'max_attempts')
  if fields[7] == args[2] then
    return 'resumed' -- said twice
  end
  if fields[1] ~= 'orphaned' or fields[2] ~= args[2] or fields[3] ~= args[3] then
    return 'stale'
  end
  local queue_by = time + tonumber(args[5])
  redis.call('HSET', job, 'state', 'queued', 'resume', args[4], 'resumed', args[2], 'queue_by', queue_by)
  if suspect(tonumber(fields[9]), tonumber(fields[10])) then
    redis.call('ZADD', key(root, 'alone'), fields[4], id)
    redis.call('PEXPIRE', key(root, 'alone'), DAY_MS)
  else
    enqueue(root, id, fields[5], tonumber(fields[4]))
  end
  look_at(root, id, queue_by, fields[6], fields[8])
  dispatch(root, time)
  return 'resumed'
end
